"""What a leaf is and how it lives. Knows no network and no clock."""
