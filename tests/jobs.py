"""The text of a file that the command line is given a task from: a regression, untrained and at its minimum."""

UNTRAINED = """
import torch
import slt

def task():
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    y = x @ torch.tensor([[1.0], [-0.5], [0.2]]) + torch.randn(200, 1)
    model = torch.nn.Linear(3, 1, bias=False)
    return slt.Task(model, (x, y), lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().squeeze(-1))
"""
# Rounded, since the last digits of a least-squares solution depend on where tensors lie in memory.
SOLUTION = """
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T.round(decimals=4))
"""
FITTED = UNTRAINED.replace("\n    return", SOLUTION + "    return")
