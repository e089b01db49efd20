"""Questions kept by name, their parameters, and what there is to ask about."""
