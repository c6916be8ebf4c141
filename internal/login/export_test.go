package login

// FindFormForTest lets the fuzz target reach the form reader.
func FindFormForTest(page []byte) error {
	_, err := findForm(page)
	return err
}
