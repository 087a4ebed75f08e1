"""What the features know: probes of phones and of speakers, and one command that trains, probes and reports."""
