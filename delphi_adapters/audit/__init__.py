"""`python -m delphi_adapters audit`: from two models' names to a report, stage by stage."""
