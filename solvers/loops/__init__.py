"""What runs the steps between two looks at the residuals."""
