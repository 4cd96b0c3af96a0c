"""The doctor: one pass over training and validation data that finds what is wrong before anything is trained.

findings.py    what a check, a finding and a report are; the registry of checks
record.py      what a check sees of a row, whatever the task
texts.py       checks of one row by its text                  tokens.py     checks of one row by its tokens
ends.py        how answers of strings end                     model.py      a model's tokenizer and template
across.py      checks of all rows together                    sketch.py     which prompts are alike
statistics.py  lengths, biases, margins, savings              source.py     how files are read; what readers refuse
run.py         the pass                                       report.py     what it found, as one value
fix.py         the clean file                                 render.py     the report for people
show.py        the first rows as tokens                       glance.py     the cheap part, for every run
"""
