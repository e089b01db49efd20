"""What a pass through a model costs, counted on its settings: nothing is loaded."""
