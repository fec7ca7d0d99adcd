package security

import (
	"os"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
