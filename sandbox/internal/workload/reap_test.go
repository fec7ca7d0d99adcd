package workload
func testReaper(s setup) error { return nil }
