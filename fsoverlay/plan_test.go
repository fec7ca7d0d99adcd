package fsoverlay

func initMain() {}
