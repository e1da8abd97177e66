"""The command line; installed as the package ``zoopt_nas_cli``."""
