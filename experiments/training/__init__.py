"""Training of one network, by one process or several."""

OPTIMIZERS = {
    "adamw": "torch.optim:AdamW",
    "adam": "torch.optim:Adam",
    "nadam": "torch.optim:NAdam",
    "rmsprop": "torch.optim:RMSprop",
    "sgd": "torch.optim:SGD",
}
"""Name on the command line → optimiser's class, imported only when used; the schedule gives SGD its momentum."""
