package cgroup

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		parse func(string) (int64, error)
		in    string
		want  int64 // -9: an error
	}{
		{ParseBytes, "512m", 512 << 20}, {ParseBytes, "1.5g", 3 << 29}, {ParseBytes, "1024", 1024}, {ParseBytes, "0", 0},
		{ParseBytes, "", -9}, {ParseBytes, "-1", -9}, {ParseBytes, "1x", -9}, {ParseBytes, "m", -9},
		{ParseSwap, "-1", -1}, {ParseSwap, "1g", 1 << 30}, {ParseSwap, "-2", -9},
		{ParseCPUs, "1.5", 15e8}, {ParseCPUs, ".5", 5e8}, {ParseCPUs, "2", 2e9}, {ParseCPUs, "0", 0}, {ParseCPUs, "0.000000001", 1},
		{ParseCPUs, "0.0000000001", -9}, {ParseCPUs, "-1", -9}, {ParseCPUs, "1/2", -9}, {ParseCPUs, "1e100000000", -9}, {ParseCPUs, "", -9},
		{ParseCPUs, "99999999999999999999", -9}, {ParseCPUs, "x", -9},
	} {
		got, err := tc.parse(tc.in)
		if (err != nil) != (tc.want == -9) || err == nil && got != tc.want {
			t.Errorf("%q: %d, %v, want %d", tc.in, got, err, tc.want)
		}
	}
}

func TestParseDevices(t *testing.T) {
	type rate = DeviceRate
	for _, tc := range []struct {
		parse func(string) (rate, error)
		in    string
		want  rate // zero: an error
	}{
		{ParseDeviceBps, "/dev/sda:1mb", rate{"/dev/sda", 1 << 20}}, {ParseDeviceBps, "/dev/sda:7", rate{"/dev/sda", 7}},
		{ParseDeviceBps, "/dev/disk/by-path/pci-0:1:2:1k", rate{"/dev/disk/by-path/pci-0:1:2", 1024}},
		{ParseDeviceBps, "sda:1", rate{}}, {ParseDeviceBps, "/dev/sda", rate{}}, {ParseDeviceBps, "/dev/sda:", rate{}},
		{ParseDeviceBps, "/dev/sda:0", rate{}}, {ParseDeviceBps, "/dev/sda:-1", rate{}}, {ParseDeviceBps, ":1", rate{}},
		{ParseDeviceIOPS, "/dev/sda:100", rate{"/dev/sda", 100}}, {ParseDeviceIOPS, "/dev/sda:1k", rate{}}, {ParseDeviceIOPS, "/dev/sda:-1", rate{}},
	} {
		if got, err := tc.parse(tc.in); (err != nil) != (tc.want == rate{}) || got != tc.want {
			t.Errorf("%q: %v, %v, want %v", tc.in, got, err, tc.want)
		}
	}
	if got, err := ParseDeviceWeight("/dev/sda:500"); err != nil || got != (DeviceWeight{"/dev/sda", 500}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"/dev/sda:9", "/dev/sda:1001", "/dev/sda:x", "/etc:100"} {
		if got, err := ParseDeviceWeight(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestParseList(t *testing.T) {
	for in, want := range map[string][]int{"": nil, "0": {0}, "0-2,7": {0, 1, 2, 7}, "7,0-1,1": {0, 1, 7}} {
		if got, err := parseList(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"-", ",", "1-", "2-1", "a", "0-8192", "-1", "1,,2", "0 1", strings.Repeat("0-8191,", 20) + "0"} {
		if got, err := parseList(in); err == nil {
			t.Errorf("%q: %d numbers", in, len(got))
		}
	}
}

func TestValidate(t *testing.T) {
	const m = 1 << 20
	for _, tc := range []struct {
		l    Limits
		want string // "": valid
	}{
		{Limits{}, ""},
		{Limits{Memory: 6 * m}, ""},
		{Limits{Memory: 6*m - 1}, "the minimum is 6MB"},
		{Limits{Memory: -1}, "the minimum is 6MB"},
		{Limits{Memory: 64 * m, MemorySwap: 64 * m}, ""},
		{Limits{Memory: 64 * m, MemorySwap: -1}, ""},
		{Limits{MemorySwap: -1}, ""},
		{Limits{MemorySwap: -2}, "-1 is unlimited"},
		{Limits{MemorySwap: 64 * m}, "must be limited too"},
		{Limits{Memory: 64 * m, MemorySwap: 32 * m}, "cannot be less"},
		{Limits{MemoryReservation: m}, "the minimum is 6MB"},
		{Limits{Memory: 64 * m, MemoryReservation: 65 * m}, "more than the memory"},
		{Limits{NanoCPUs: 5e8}, ""},
		{Limits{NanoCPUs: 1e7 - 1}, "from 0.01"},
		{Limits{NanoCPUs: 100000e9}, "as there are"},
		{Limits{NanoCPUs: 5e8, CPUPeriod: 100000}, "neither"},
		{Limits{NanoCPUs: 5e8, CPUQuota: 100000}, "neither"},
		{Limits{CPUPeriod: 1000, CPUQuota: 1000}, ""},
		{Limits{CPUPeriod: 999}, "from 1000 to 1000000"},
		{Limits{CPUPeriod: 1000001}, "from 1000 to 1000000"},
		{Limits{CPUQuota: 999}, "at least 1000"},
		{Limits{CPUQuota: -1}, ""},
		{Limits{CPUShares: 1}, "from 2 to 262144"},
		{Limits{CPUShares: 262145}, "from 2 to 262144"},
		{Limits{CPUShares: 2}, ""},
		{Limits{CpusetCPUs: "0-1,1"}, ""},
		{Limits{CpusetCPUs: "1-0"}, "cpuset cpus"},
		{Limits{CpusetMems: "x"}, "cpuset mems"},
		{Limits{PidsLimit: -1}, ""},
		{Limits{PidsLimit: -2}, "-1 for none"},
		{Limits{BlkioWeight: 9}, "from 10 to 1000"},
		{Limits{BlkioWeight: 1001}, "from 10 to 1000"},
		{Limits{BlkioWeightDevice: []DeviceWeight{{"/dev/sda", 9}}}, "from 10 to 1000"},
		{Limits{DeviceReadBps: []DeviceRate{{"/dev/sda", 1}}}, ""},
		{Limits{DeviceReadBps: []DeviceRate{{"/etc/passwd", 1}}}, "not below /dev"},
		{Limits{DeviceWriteIOPS: []DeviceRate{{"/dev/sda", 0}}}, "not a positive number"},
		{Limits{DeviceWriteIOPS: make([]DeviceRate, 65)}, "not below /dev"},
	} {
		err := tc.l.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.l, err, tc.want)
		}
	}
}

// Each field is asked for by a flag with a controller, and survives an update that
// does not mention it.
func TestEveryLimit(t *testing.T) {
	full := Limits{
		Memory: 64 << 20, MemorySwap: 128 << 20, MemoryReservation: 32 << 20, NanoCPUs: 5e8, CPUQuota: 5000, CPUPeriod: 10000, CPUShares: 512,
		CpusetCPUs: "0", CpusetMems: "0", PidsLimit: 10, BlkioWeight: 100, BlkioWeightDevice: []DeviceWeight{{"/dev/a", 20}},
		DeviceReadBps: []DeviceRate{{"/dev/b", 1}}, DeviceWriteBps: []DeviceRate{{"/dev/c", 2}},
		DeviceReadIOPS: []DeviceRate{{"/dev/d", 3}}, DeviceWriteIOPS: []DeviceRate{{"/dev/e", 4}},
	}
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() {
			t.Fatalf("%s is not in this test", name)
		}
		var one Limits
		reflect.ValueOf(&one).Elem().Field(i).Set(v.Field(i))
		flags := one.flags()
		if len(flags) != 1 || !slices.Contains(allControllers, flags[0].controller) || one.Zero() {
			t.Errorf("%s: %v", name, flags)
		}
		if name == "MemorySwap" { // not alone
			one.Memory = full.Memory
		}
		if got, err := one.With(Limits{}); err != nil || !reflect.DeepEqual(got, one) {
			t.Errorf("%s is lost by an update of nothing: %+v, %v", name, got, err)
		}
		if name == "MemorySwap" {
			continue
		}
		if got, err := (Limits{}).With(one); err != nil || !reflect.DeepEqual(got, one) {
			t.Errorf("%s is not updated: %+v, %v", name, got, err)
		}
	}
}

func TestWith(t *testing.T) {
	const m = 1 << 20
	for _, tc := range []struct{ old, update, want Limits }{
		{Limits{Memory: 64 * m}, Limits{Memory: 256 * m}, Limits{Memory: 256 * m}},
		{Limits{Memory: 64 * m, MemorySwap: 128 * m}, Limits{Memory: 128 * m}, Limits{Memory: 128 * m, MemorySwap: 128 * m}},
		{Limits{Memory: 64 * m, MemorySwap: 128 * m}, Limits{Memory: 256 * m, MemorySwap: -1}, Limits{Memory: 256 * m, MemorySwap: -1}},
		{Limits{PidsLimit: 5}, Limits{PidsLimit: -1}, Limits{PidsLimit: -1}},
	} {
		if got, err := tc.old.With(tc.update); err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%+v with %+v: %+v, %v", tc.old, tc.update, got, err)
		}
	}
	for _, tc := range []struct {
		old, update Limits
		want        string
	}{
		{Limits{Memory: 64 * m, MemorySwap: 128 * m}, Limits{Memory: 129 * m}, "--memory-swap"},
		{Limits{NanoCPUs: 5e8}, Limits{CPUQuota: 5000}, "the other way"},
		{Limits{CPUQuota: 5000}, Limits{NanoCPUs: 5e8}, "the other way"},
		{Limits{}, Limits{MemorySwap: 64 * m}, "must be limited too"},
		{Limits{Memory: 64 * m}, Limits{MemoryReservation: 65 * m}, "more than the memory"},
	} {
		if got, err := tc.old.With(tc.update); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v with %+v: %+v, %v", tc.old, tc.update, got, err)
		}
	}
}

// The kernel's words of io.stat, as the library sums them up for each device.
func TestConvert(t *testing.T) {
	st := cgroups.NewStats()
	st.CpuStats.CpuUsage.TotalUsage = 5e9
	st.MemoryStats.Usage = cgroups.MemoryData{Usage: 100, MaxUsage: 200, Limit: 1<<64 - 1}
	st.MemoryStats.SwapOnlyUsage = cgroups.MemoryData{Usage: 7, Limit: 70}
	st.MemoryStats.Stats["inactive_file"] = 30
	st.BlkioStats.IoServiceBytesRecursive = []cgroups.BlkioStatEntry{{Op: "Read", Value: 1}, {Op: "Write", Value: 10}, {Op: "Read", Value: 2}}
	st.BlkioStats.IoServicedRecursive = []cgroups.BlkioStatEntry{{Op: "Write", Value: 3}, {Op: "Write", Value: 4}}
	got := convert(st)
	want := Stats{CPU: CPUStats{Usage: 5e9}, Memory: MemoryStats{Current: 100, Inactive: 30, Peak: 200, Swap: 7, SwapLimit: 70},
		IO: IOStats{ReadBytes: 3, WriteBytes: 10, Writes: 7}}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
