package audit_test

func childMain() {}
