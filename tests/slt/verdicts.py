"""What tests ask of a verdict."""


def named(estimate, name):
    """The problem of this name, which must be there, with figures and advice."""
    assert name in estimate.verdict.names
    problem = next(problem for problem in estimate.verdict.problems if problem.name == name)
    assert problem.evidence
    assert problem.advice
    assert name in str(problem)
    return problem
