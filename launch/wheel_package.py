"""In a wheel this file is synergy/_files/synergy/__init__.py; a checkout has no use for it.

Child processes get PYTHONPATH=<folder of recipes/>, which holds the package in a checkout, but not in a wheel, where it is
the other way round. Naming site-packages instead would put the driver's packages before those of the framework's own
environment. This stands in for the package and looks for its modules where they are.
"""

import os

__path__ = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
