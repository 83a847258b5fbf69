"""What the tests share: tiers (what may run here), leaks (what a test left behind), places (directories and homes), peers (other programs)."""
