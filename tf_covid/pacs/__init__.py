"""Archives: studies from them, results to them, by DICOMweb (PS3.18)."""
