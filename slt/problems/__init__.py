"""The named problems of a run, each found from evidence; a file for each thing that can be wrong."""
