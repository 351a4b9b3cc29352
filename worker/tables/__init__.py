"""Tables as people have them: CSV files and workbooks, their columns matched to attributes (contract §12).

source.py    the bytes, unpacked where they are compressed
text.py      lines of text in the file's encoding
csv_file.py, workbook.py    rows of cells
columns.py   which attribute each column holds
cells.py     what a cell says, without its spreadsheet wrapping
damage.py    what a spreadsheet or a shifted row has spoilt
records.py   all of it together: one record for each row
"""
