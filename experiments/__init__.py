"""Tasks, training and the comparison of implicit, explicit, equilibrium and parallel networks."""
