plugins {
    `java-library`
    alias(libs.plugins.kotlin.jvm)
}

kotlin {
    compilerOptions {
        jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_11
        freeCompilerArgs.add("-Xjdk-release=11")
    }
}
java {
    sourceCompatibility = JavaVersion.VERSION_11
    targetCompatibility = JavaVersion.VERSION_11
}

// An app brings its engine: onnxruntime-android, or litert.
dependencies {
    compileOnly(libs.onnxruntime)
    compileOnly(project(":dermedge-litert-stubs"))
}
