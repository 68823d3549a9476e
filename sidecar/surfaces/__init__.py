"""Floor 4: what people and programs touch. The data plane, the control API and the command line."""
