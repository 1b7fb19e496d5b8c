"""The links of the doctor's chain, one function each: measurements in, a finding out. Pure."""
