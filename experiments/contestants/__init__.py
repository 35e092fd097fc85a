"""The networks that are compared, and what makes them alike."""

CONTESTANTS = {
    "digits": "experiments.contestants.small:digits",
    "rings": "experiments.contestants.small:rings",
    "parity": "experiments.contestants.small:parity",
    "telgarsky": "experiments.contestants.small:rings",
    "text": "experiments.contestants.text:language_models",
    "deblur": "experiments.contestants.deblurring:restorers",
    "sudoku": "experiments.contestants.reasoning:thinkers",
    "sudoku6": "experiments.contestants.reasoning:thinkers",
    "mnist": "experiments.contestants.pictures:grey",
    "fashion": "experiments.contestants.pictures:grey",
    "cifar10": "experiments.contestants.pictures:cifar",
    "cifar100": "experiments.contestants.pictures:cifar",
    "imagenet": "experiments.contestants.pictures:imagenet",
}
"""Task of the command line → the function that makes its contestants, imported only when used."""
