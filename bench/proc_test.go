package main

import (
	"os"
	"testing"
)

func TestParseStat(t *testing.T) {
	// utime and stime are the 14th and 15th field; the name holds blanks and brackets.
	line := "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 7 20 0 3 0 100 1000 10"
	if got := parseStat(line); got != 3 {
		t.Errorf("CPU time %v s, want 3", got)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1 2"} {
		if got := parseStat(bad); got != 0 {
			t.Errorf("%q: %v, want 0", bad, got)
		}
	}
}

func TestParseMachine(t *testing.T) {
	// user nice system idle iowait irq softirq steal
	stat := "cpu  100 200 300 9000 8000 40 60 5000 0 0\ncpu0 1 1 1 1\n"
	if got := parseMachine(stat); got != 7 {
		t.Errorf("busy for %v s, want 7", got)
	}
}

func TestParseResident(t *testing.T) {
	if got := parseResident("Name:\tx\nVmHWM:\t  999 kB\nVmRSS:\t    2048 kB\n"); got != 2<<20 {
		t.Errorf("%v bytes, want %v", got, 2<<20)
	}
	if got := parseResident("Name:\tkthread\n"); got != 0 {
		t.Errorf("a process without memory: %v", got)
	}
}

func TestOwnProcess(t *testing.T) {
	me := []int{os.Getpid()}
	if residentOf(me) < 1<<20 {
		t.Errorf("resident memory of this test: %v bytes", residentOf(me))
	}
	if machineCPU() <= 0 {
		t.Error("the machine has never been busy")
	}
	if cpuOf([]int{-1}) != 0 || residentOf([]int{-1}) != 0 {
		t.Error("a process that is not there uses something")
	}
}
