"""How good a personalised cascade is: image features, metrics, picture grids and the report."""
