"""From a list to a file: poll one user, fetch one fax."""
