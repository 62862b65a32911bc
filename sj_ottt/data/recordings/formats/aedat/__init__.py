"""AEDAT, the formats of jAER (1.0, 2.0), cAER (3.1) and iniVation's DV (4.0), a module each."""
