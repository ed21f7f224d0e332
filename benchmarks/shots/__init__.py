"""Shot detection: montages of known truth, a scorer, and the comparison with PySceneDetect."""
