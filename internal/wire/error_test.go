package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"syscall"
	"testing"
)

func TestToError(t *testing.T) {
	path := &fs.PathError{Op: "open", Path: "/f", Err: syscall.ENOENT}
	inner := &Error{Code: "busy", Step: "bind", Path: "0.0.0.0:80", Errno: syscall.EADDRINUSE, Fix: "another port"}
	for _, tc := range []struct {
		name string
		step string
		err  error
		want Error
		text string
	}{
		{"plain", "", errors.New("broken"), Error{Msg: "broken"}, "broken"},
		{"path", "read it", path, Error{Step: "read it", Path: "/f", Errno: syscall.ENOENT, Msg: "open"}, "read it /f: open: no such file or directory"},
		{"link", "", &os.LinkError{Op: "rename", Old: "/a", New: "/b", Err: syscall.EXDEV}, Error{Path: "/b", Errno: syscall.EXDEV, Msg: "rename"}, "/b: rename: invalid cross-device link"},
		{"syscall", "s", os.NewSyscallError("mount", syscall.EPERM), Error{Step: "s", Errno: syscall.EPERM, Msg: "mount"}, "s: mount: operation not permitted"},
		{"errno", "s", syscall.EPERM, Error{Step: "s", Errno: syscall.EPERM}, "s: operation not permitted"},
		{"wrapped errno", "", fmt.Errorf("mount proc: %w", syscall.EPERM), Error{Errno: syscall.EPERM, Msg: "mount proc"}, "mount proc: operation not permitted"},
		{"wrapped path", "", fmt.Errorf("load: %w", path), Error{Errno: syscall.ENOENT, Msg: "load: open /f"}, "load: open /f: no such file or directory"},
		{"own", "", inner, *inner, "bind 0.0.0.0:80: address already in use"},
		{"own with step", "publish", inner, Error{Code: "busy", Step: "publish: bind", Path: "0.0.0.0:80", Errno: syscall.EADDRINUSE, Fix: "another port"},
			"publish: bind 0.0.0.0:80: address already in use"},
		{"own wrapped", "", fmt.Errorf("publish: %w", inner), Error{Code: "busy", Step: "publish: bind", Path: "0.0.0.0:80", Errno: syscall.EADDRINUSE, Fix: "another port"},
			"publish: bind 0.0.0.0:80: address already in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ToError(tc.step, tc.err)
			if !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("got %#v\nwant %#v", *got, tc.want)
			}
			if got.Error() != tc.text {
				t.Errorf("text %q, want %q", got.Error(), tc.text)
			}
			b, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			var back Error
			if err := json.Unmarshal(b, &back); err != nil || back != *got {
				t.Errorf("over the wire %#v, %v", back, err)
			}
			if got.Errno != 0 && !errors.Is(&back, got.Errno) {
				t.Error("errors.Is does not find the errno")
			}
		})
	}
	if ToError("x", nil) != nil {
		t.Error("nil became an error")
	}
}
