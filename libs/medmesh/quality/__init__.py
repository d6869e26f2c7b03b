"""Whether data are fit to learn from: rules by kind, each a code with words in the catalogue (`quality.*`); a project decides which block.

`rules.RULES` lists them. Functions here take arrays and headers and answer findings; `report.Report` counts them over a data set.
"""
