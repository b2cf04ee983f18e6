"""Prediction log, drift, decision, trigger."""

if __name__ == "monitoring":
    raise ImportError("import bloomery.monitoring: the bare name 'monitoring' is not ours to take")
