"""The console: a web page for operators (contract §11). It stands on what the commands stand on."""
