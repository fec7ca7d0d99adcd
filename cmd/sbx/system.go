package main

func systemCommand(g *globals) *command {
	c := &command{Use: "system COMMAND", Short: "Look after what sbx keeps on the disk"}
	c.add(autostartCommand(g), systemUsageCommand(g), eventsCommand(g), infoCommand(g), systemPruneCommand(g))
	return c
}
