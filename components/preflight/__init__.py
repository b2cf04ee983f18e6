"""Everything from outside enters here, checked and fingerprinted."""
