"""Write the HTML report of a bundle; needs no torch."""
