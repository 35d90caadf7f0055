"""How many engines a load needs: the product's own scheduler in virtual time, behind measured times of steps."""
