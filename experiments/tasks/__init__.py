"""What networks are trained for: data, a goal, and how long."""

TASKS = {
    "digits": "experiments.tasks.small:digits",
    "rings": "experiments.tasks.small:rings",
    "parity": "experiments.tasks.small:parity",
    "telgarsky": "experiments.tasks.small:telgarsky",
    "text": "experiments.tasks.text:text",
    "deblur": "experiments.tasks.deblurring:deblur",
    "sudoku": "experiments.tasks.sudoku:sudoku",
    "sudoku6": "experiments.tasks.sudoku:sudoku6",
    "mnist": "experiments.tasks.pictures:mnist",
    "fashion": "experiments.tasks.pictures:fashion",
    "cifar10": "experiments.tasks.pictures:cifar10",
    "cifar100": "experiments.tasks.pictures:cifar100",
    "imagenet": "experiments.tasks.pictures:imagenet",
}
"""Name on the command line → the function that makes the task, imported only when used.

A new task takes a function, a row here, and a row for its contestants in `contestants.CONTESTANTS`."""
