"""Files of registrations (contract §12): tables and JSON go in, a line about each row comes out.

source.py    the bytes, unpacked where they are compressed, and their lines of text or elements of JSON
cells.py     what a cell says, and which attribute its column holds
damage.py    what a spreadsheet or a shifted row has spoilt
workbook.py, table.py    rows of cells, and a record for each row of a table
rows.py      rows of a job, in whatever format they come, and what a worker would refuse in them
job_database.py    what only many rows together show, and what earlier runs have settled
job.py, submission.py    rows are sent, and their replies followed
results.py   what a job writes
"""
