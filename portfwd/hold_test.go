package portfwd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// holdEnv makes the test binary a process that holds a port: "tcp4 127.0.0.1:80".
const holdEnv = "PORTFWD_TEST_HOLD"

func holdPort(spec string) int {
	network, addr, _ := strings.Cut(spec, " ")
	var err error
	if strings.HasPrefix(network, "udp") {
		_, err = net.ListenPacket(network, addr)
	} else {
		_, err = net.Listen(network, addr)
	}
	fmt.Println("ready", err)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// hold starts a process that holds a port until the test ends.
func hold(t *testing.T, network, addr string) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdEnv+"="+network+" "+addr)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if l, err := bufio.NewReader(out).ReadString('\n'); l != "ready <nil>\n" {
		t.Fatalf("the process that holds %s: %q, %v", addr, l, err)
	}
	return cmd.Process.Pid
}
