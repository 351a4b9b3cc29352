"""The console: a web page for operators (contract §11). It uses the same operations as the commands."""
