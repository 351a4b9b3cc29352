"""Files of registrations (contract §12): tables and JSON go in, a line about each row comes out.

source.py    the bytes, unpacked where they are compressed, and their lines of text or elements of JSON
cells.py     what a cell says, and which attribute its column holds
damage.py    what a spreadsheet or a shifted row has spoilt
csv_file.py, workbook.py    rows of cells
table.py     all of it together: one record for each row
rows.py      rows of a job, in whatever format they come
job_database.py    what only many rows together show, and what earlier runs have settled
outstanding.py, submission.py    rows are sent, and their replies followed
job.py, results.py    how a job stands, and what it writes
"""
