"""Files of registrations (contract §12): tables or JSON as input, one line per row as output.

source.py    the bytes of an input, decompressed, and its lines of text or elements of JSON
cells.py     the values of cells, and the attributes of columns
damage.py    values that a spreadsheet or a shifted row has damaged
workbook.py, table.py    rows of cells, and a record for each row of a table
rows.py      the rows of a job in any format, and their validation errors
job_database.py    checks across rows, and the results of earlier runs
job.py, submission.py    sending the rows, and following their replies
results.py   the files that a job writes"""
