"""The backbone group `timm:NAME`: every image classifier of timm."""
