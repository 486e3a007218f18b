"""From a list to a file: poll one stream, fetch one fax."""
