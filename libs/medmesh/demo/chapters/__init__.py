"""What happens, one part after the other: functions on the stage."""
