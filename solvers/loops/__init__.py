"""The loops, which run the steps between two checks of the residuals."""
