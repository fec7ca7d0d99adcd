package proto

import "strings"

// Beginnings of Network.Mode for a network namespace that is not the sandbox's own.
const (
	ModeContainer = "container:" // and the id of the sandbox that has it
	ModePath      = "ns:"        // and the path of a file
)

// Container is the id of the sandbox whose network this is, "" if it is not one's.
func (n *Network) Container() string {
	id, ok := strings.CutPrefix(n.Mode, ModeContainer)
	if !ok {
		return ""
	}
	return id
}

// NetNSPath is the path of the network namespace, "" if it is not given by one.
func (n *Network) NetNSPath() string {
	path, ok := strings.CutPrefix(n.Mode, ModePath)
	if !ok {
		return ""
	}
	return path
}

// NetNS is a sandbox's network, for another one that joins it. With Host it is the
// host's; else the namespace comes as "netns", and the user namespace that owns it
// as "userns".
type NetNS struct {
	Host bool `json:"host,omitempty"`
	// Dir is where the sandbox's hosts, hostname and resolv.conf are.
	Dir      string `json:"dir"`
	Hostname string `json:"hostname"`
}
