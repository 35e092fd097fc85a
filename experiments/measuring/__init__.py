"""What a trained network costs, how its equilibria converge, and what the diagnosis says about it."""
