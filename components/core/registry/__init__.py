"""The MLflow client, the line of records behind it, and what a registered version says about itself."""
