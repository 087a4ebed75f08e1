"""Scripts that write models and features in the formats of other tools."""
