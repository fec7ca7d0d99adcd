package image

func storeChild(mode string) int { return 2 }
